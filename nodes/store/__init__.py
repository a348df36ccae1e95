"""The namespace store: the view folded from the journals into SQLite."""
