"""Teachers that speak: they write texts and score them, and method code does not see who they are."""
