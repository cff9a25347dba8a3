"""What the files of sanity checks are called, for those that read them without a network."""

SCHEMA = "driving-xai-sanity/1"
SUMMARY, PER_FRAME = "sanity.json", "sanity.parquet"
