"""From clips to face crops: frames of a video, faces in them, crops of the faces."""
