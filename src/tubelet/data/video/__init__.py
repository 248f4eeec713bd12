"""Video files read: what containers claim, when frames are shown and how, and in what order to decode them."""
