"""Why does this model not stop?"""
