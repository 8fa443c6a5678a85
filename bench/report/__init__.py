"""From results to tables in the terminal, a page in Markdown, a page in HTML, and pictures."""
