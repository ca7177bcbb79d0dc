"""What people look at: exams, figures, tables, alarms and the report. Nothing here feeds training."""
