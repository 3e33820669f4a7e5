"""Annotations of objects as people have them: a reader for each format, which gives `Annotated` images as they say."""
