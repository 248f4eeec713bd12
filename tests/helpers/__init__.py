"""What tests share: media files, tiny runs, commands in this process, and the check for leaks."""
