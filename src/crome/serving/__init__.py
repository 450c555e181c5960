"""From a question to an answer: the one prompt path of chat, evaluation and server."""
