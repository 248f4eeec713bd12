"""Reading of videos: container headers, timestamps, seeking, decoding order, and conversion of colors."""
