"""Pages that work offline, each writer beside its template."""
