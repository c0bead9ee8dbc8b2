"""Text in, passages out: the archive that gives back verbatim what a state cannot hold."""
