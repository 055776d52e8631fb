"""Search in a folder of videos with words: index, ranking, regions of nouns, page and overlay."""
