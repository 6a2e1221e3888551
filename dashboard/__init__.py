"""The Dash application that explores runs. Reads run folders only; never imports torch."""
