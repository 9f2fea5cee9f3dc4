"""Pictures and tables: pure functions of arrays and numbers."""
