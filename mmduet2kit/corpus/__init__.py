"""From video files to dialogues: the procedural world, decoding, scenes, questions and answers, splits."""
