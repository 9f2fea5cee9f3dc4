"""`street`: an embedded benchmark of procedurally drawn street scenes in two looks. Nothing is downloaded."""
