"""Picture -> region -> geocell -> offset."""
