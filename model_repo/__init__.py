"""The contract between search and router: what a published model is and how it is run and judged."""
