"""Annotation files of other programs, one module a format; a module that is here is found."""
