"""One language model, many adapters, an OpenAI-compatible server and a page.

Read `service` first (what a request goes through), then `engine` (one batch for all requests) and
`app` (the HTTP surface); `ask` is one answer on the terminal.
"""
