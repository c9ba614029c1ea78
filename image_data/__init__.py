"""Images under the trainer and the curation: where they come from, pairs, geometry, the degradation, shards."""
