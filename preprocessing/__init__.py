"""From videos to face crops: decode frames, detect faces, crop them."""
