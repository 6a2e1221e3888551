"""Static reports, paper figures and tables. Reads run folders only; never imports torch."""
