"""Generated protocol stubs; sources in proto/, made by `make proto`."""
