"""Defects that are planted on purpose, to see that the tests find them.

`table` lists them, `runner` plants one at a time in a copy of the package, and `server` is the
process in whose children the tests run. Run all of them with ``python -m tests.planted`` from the
root of the repository, or those whose name holds a word: ``python -m tests.planted "trap 12"``.
"""
