"""The hook layer and the maths: knows nothing of personas or markers."""
