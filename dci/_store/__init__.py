"""Files: a container of arrays, a journal of operations, a directory of both that survives crashes.

    directory    Store: a base, the journal of what came after it, and the switch to a new base
    journal      Journal: records appended to a file
    records      their bytes, and where a torn one ends the file
    container    write, read, verify: named arrays and JSON in one file
    layout       the container's header and directory; what both formats share
    files        replacing a file at once, locks, syncing

Each calls only what is below it. Nothing here knows what an index is; the bytes are in docs/file-format.md.
"""
