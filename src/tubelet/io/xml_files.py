"""Strict reader of XML: no document types, and so no entities that expand or fetch files."""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from tubelet.io.text import COPY_AGAIN, TEXT_BYTES, file_error, read_bytes

# Nesting of elements; annotation files have fewer than ten levels.
XML_DEPTH = 64


def read_xml(path: Path, root: str, remedy: str = COPY_AGAIN) -> Element:
    """The root element of an XML file.

    Args:
        path: the file.
        root: tag that the root element must have.
        remedy: what to do if the file cannot be read, for the error.

    Raises:
        DataError: if it is not well-formed, has a document type, is nested too deeply, or has another root.
        FileError: if it cannot be read.
    """
    content = read_bytes(path, remedy, TEXT_BYTES)
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > XML_DEPTH:
            raise file_error(path, f"has elements of more than {XML_DEPTH} levels", remedy)
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def document_type(*_: object) -> None:
        raise file_error(path, "has a document type, which may define entities and is not allowed", remedy)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = document_type
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
        element = builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:  # also an encoding that does not exist
        raise file_error(path, f"is not well-formed XML ({error})", remedy) from error
    if element.tag != root:
        raise file_error(path, f"its root element is {element.tag!r:.60}, expected {root!r}", remedy)
    return element
