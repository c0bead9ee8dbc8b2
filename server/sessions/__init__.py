"""Named sessions: what they are on the disk, and what may be done to them."""
