"""Where prompts, seed data and truth come from:

the toy world, files of people, judge data made from rankings.
"""
