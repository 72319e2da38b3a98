"""From runs to a paper's table: loading, grouping into arms, statistics, tables, figures, report."""
