"""What people look at: exams, figures, alarms and the report. Nothing here feeds training."""
