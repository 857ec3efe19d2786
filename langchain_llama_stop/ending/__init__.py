"""Where may an answer end, and how is it brought to an end?"""
