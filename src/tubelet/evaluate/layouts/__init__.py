"""The folders of public benchmarks, as their official downloads unpack: from files on disk to plain lists."""
