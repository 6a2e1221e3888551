"""One module a page: ``layout(context)`` returns what stands below its title."""
