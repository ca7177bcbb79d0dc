"""Where prompts, seed data and truth come from: the toy, files of people, ranked answers."""
