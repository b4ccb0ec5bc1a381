"""Starting and placing the parts of a serving system, and the models that ship with it."""
