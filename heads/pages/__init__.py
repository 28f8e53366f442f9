"""What people read: tables, plots and self-contained HTML pages."""
