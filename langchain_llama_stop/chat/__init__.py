"""Messages into the ids of a prompt, and answers into tool calls."""
