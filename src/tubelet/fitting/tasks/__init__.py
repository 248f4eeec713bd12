"""Tasks on labels, one file each: `LABEL_TASK` in a module is found by its being there."""
