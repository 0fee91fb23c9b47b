"""The dense original: fetched once, checked, pinned by hash, read by memory map."""
