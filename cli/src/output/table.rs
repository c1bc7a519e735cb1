//! Tables that fit the terminal.
//!
//! Widths are those of the terminal's cells, not of bytes or characters. When standard output is not a terminal
//! nothing is cut and nothing is left out.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use unicode_width::UnicodeWidthStr as _;

use super::human::printable;

/// Columns between two columns.
const GAP: usize = 2;
/// No column is made narrower than this before columns are left out.
const COMFORTABLE: usize = 8;
/// No column is left out of so many.
const LEAST_COLUMNS: usize = 3;

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell whose text is coloured on a terminal.
    pub(crate) fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Self { text: printable(text.as_ref()), style }
    }

    /// The text in its style, for use outside of a table.
    pub(crate) fn rendered(&self) -> String {
        let Self { text, style } = self;
        format!("{style}{text}{style:#}")
    }

    /// A cell that shows something good.
    pub(crate) fn good(text: impl AsRef<str>) -> Self {
        Self::styled(text, AnsiColor::Green.on_default())
    }

    /// A cell that shows something bad.
    pub(crate) fn bad(text: impl AsRef<str>) -> Self {
        Self::styled(text, AnsiColor::Red.on_default())
    }

    /// A cell that shows something to look at.
    pub(crate) fn notable(text: impl AsRef<str>) -> Self {
        Self::styled(text, AnsiColor::Yellow.on_default())
    }

    /// A cell that shows something in motion.
    pub(crate) fn active(text: impl AsRef<str>) -> Self {
        Self::styled(text, AnsiColor::Cyan.on_default())
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// A column's heading, whether its text may be cut before that of other columns, and how wide it is at least where
/// rows come later.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    heading: &'static str,
    flexible: bool,
    room: usize,
}

impl Column {
    /// The same column, at least this wide where rows come later that may be longer than those that are known.
    pub(crate) const fn with_room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// Whether the column says what state an object is in.
    pub(crate) fn shows_state(&self) -> bool {
        matches!(self.heading, "PHASE" | "STATUS")
    }
}

/// A column whose text is cut only when nothing else helps.
pub(crate) const fn column(heading: &'static str) -> Column {
    Column { heading, flexible: false, room: 0 }
}

/// A column whose text is cut first.
pub(crate) const fn flexible(heading: &'static str) -> Column {
    Column { heading, flexible: true, room: 0 }
}

/// The widths of a table's columns, so that lines that come later stay in line with those before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    widths: Vec<usize>,
    /// Whether what is wider than its column is cut; otherwise it pushes the rest of its line aside.
    cuts: bool,
}

impl Layout {
    /// The widths for these rows in a terminal of this width.
    pub(crate) fn new(columns: &[Column], rows: &[Vec<Cell>], terminal: Option<usize>) -> Self {
        let mut widths: Vec<usize> = columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let widest = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.text.width()).max();
                column.heading.width().max(widest.unwrap_or(0))
            })
            .collect();
        if let Some(terminal) = terminal {
            widths.truncate(fitting(columns, &widths, terminal));
            // What follows the heading of the last column says that there are more.
            let mark = if widths.len() < columns.len() { GAP + 1 } else { 0 };
            fit(columns, &mut widths, terminal.saturating_sub(mark));
        }
        Self { widths, cuts: terminal.is_some() }
    }

    /// The widths for these rows and for others that come later.
    pub(crate) fn with_room(columns: &[Column], rows: &[Vec<Cell>], terminal: Option<usize>) -> Self {
        let room: Vec<Cell> = columns.iter().map(|column| Cell::from("x".repeat(column.room))).collect();
        let rows: Vec<Vec<Cell>> = rows.iter().cloned().chain(std::iter::once(room)).collect();
        Self::new(columns, &rows, terminal)
    }

    /// The heading line.
    pub(crate) fn heading(&self, columns: &[Column]) -> String {
        let cells: Vec<Cell> =
            columns.iter().map(|column| Cell::styled(column.heading, Style::new().bold())).collect();
        let mut line = self.line(&cells);
        if self.widths.len() < columns.len() {
            line.pop();
            let last = self.widths.len() - 1;
            let used = cells[last].text.width().min(self.widths[last]);
            line.extend(std::iter::repeat_n(' ', self.widths[last] - used + GAP));
            line.push_str("…\n");
        }
        line
    }

    /// One line.
    pub(crate) fn line(&self, cells: &[Cell]) -> String {
        let mut line = String::new();
        let last = cells.len().min(self.widths.len()).saturating_sub(1);
        for (index, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            let text = if self.cuts { cut(&cell.text, *width) } else { cell.text.clone() };
            let style = cell.style;
            write!(line, "{style}{text}{style:#}").expect("writing to a string cannot fail");
            if index < last {
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(text.width()) + GAP));
            }
        }
        line.push('\n');
        line
    }
}

/// A whole table: heading and rows.
pub(crate) fn format(columns: &[Column], rows: &[Vec<Cell>], terminal: Option<usize>) -> String {
    let layout = Layout::new(columns, rows, terminal);
    let mut text = layout.heading(columns);
    for row in rows {
        text.push_str(&layout.line(row));
    }
    text
}

/// How many columns, from the left, fit without making any of them uncomfortably narrow.
fn fitting(columns: &[Column], widths: &[usize], terminal: usize) -> usize {
    let least =
        |index: usize| if columns[index].flexible { widths[index].min(COMFORTABLE) } else { widths[index] };
    let needed = |count: usize| {
        let mark = if count < widths.len() { GAP + 1 } else { 0 };
        (0..count).map(least).sum::<usize>() + GAP * count.saturating_sub(1) + mark
    };
    (LEAST_COLUMNS.min(widths.len())..=widths.len())
        .rev()
        .find(|count| needed(*count) <= terminal)
        .unwrap_or_else(|| LEAST_COLUMNS.min(widths.len()))
}

/// Makes columns narrower until they fit: first the flexible ones down to a comfortable width, the widest first,
/// then all of them.
fn fit(columns: &[Column], widths: &mut [usize], terminal: usize) {
    let room = terminal.saturating_sub(GAP * widths.len().saturating_sub(1));
    for (only_flexible, least) in [(true, COMFORTABLE), (false, COMFORTABLE), (false, 1)] {
        loop {
            let excess = widths.iter().sum::<usize>().saturating_sub(room);
            if excess == 0 {
                return;
            }
            let widest = (0..widths.len())
                .filter(|index| widths[*index] > least && (columns[*index].flexible || !only_flexible))
                .max_by_key(|index| widths[*index]);
            let Some(widest) = widest else { break };
            // One cell at a time keeps columns of equal width equal; tables have few columns and terminals are narrow.
            widths[widest] -= 1;
        }
    }
}

/// The text, or its beginning and an ellipsis, in at most `width` cells.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        kept.push(c);
        // The whole is measured, because characters may combine to something wider than their sum.
        if kept.width() + 1 > width {
            kept.pop();
            break;
        }
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COLUMNS: [Column; 3] = [column("NAME"), flexible("MESSAGE"), column("AGE")];

    fn rows(rows: &[[&str; 3]]) -> Vec<Vec<Cell>> {
        rows.iter().map(|row| row.iter().map(Cell::from).collect()).collect()
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = format(&COLUMNS, &rows(&[["a", "short", "3m"], ["longer-name", "x", "10d"]]), None);
        insta::assert_snapshot!(plain(&table), @r"
        NAME         MESSAGE  AGE
        a            short    3m
        longer-name  x        10d
        ");
    }

    #[test]
    fn wide_characters_count_as_two_cells() {
        let table = format(&COLUMNS, &rows(&[["日本", "žluť", "1s"], ["abcd", "e\u{301}", "2s"]]), None);
        insta::assert_snapshot!(plain(&table), @r"
        NAME  MESSAGE  AGE
        日本  žluť     1s
        abcd  é        2s
        ");
    }

    #[test]
    fn the_flexible_column_is_cut_first() {
        let message = "no node offers 64 cpus and 512Gi of memory";
        let table = format(&COLUMNS, &rows(&[["a-rather-long-name", message, "3m"]]), Some(40));
        insta::assert_snapshot!(plain(&table), @r"
        NAME                MESSAGE          AGE
        a-rather-long-name  no node offers…  3m
        ");
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out_from_the_right_and_a_mark_says_so() {
        let columns =
            [column("NAME"), column("PHASE"), column("NODE"), column("DURATION"), flexible("REASON")];
        let row: Vec<Cell> =
            ["hello-wff6g", "Succeeded", "node-1", "12s", "-"].iter().map(Cell::from).collect();
        let table = format(&columns, &[row], Some(45));
        insta::assert_snapshot!(plain(&table), @r"
        NAME         PHASE      NODE    DURATION  …
        hello-wff6g  Succeeded  node-1  12s
        ");
    }

    #[test]
    fn nothing_is_cut_when_the_output_is_not_a_terminal() {
        let message = "m".repeat(500);
        assert!(format(&COLUMNS, &rows(&[["a", &message, "3m"]]), None).contains(&message));
    }

    #[test]
    fn cells_of_others_cannot_break_the_table() {
        let table = format(&COLUMNS, &rows(&[["a\nb", "\u{1b}[2J", "3m"]]), None);
        assert_eq!(plain(&table).lines().count(), 2);
    }

    proptest! {
        #[test]
        fn every_line_fits_every_terminal(
            cells in prop::collection::vec([".{0,60}", ".{0,60}", ".{0,60}"], 0..5),
            terminal in 7usize..120,
        ) {
            let rows: Vec<Vec<Cell>> = cells.iter().map(|row| row.iter().map(Cell::from).collect()).collect();
            for line in plain(&format(&COLUMNS, &rows, Some(terminal))).lines() {
                prop_assert!(line.width() <= terminal, "{line:?} is wider than {terminal}");
            }
        }

        #[test]
        fn lines_of_one_table_have_one_beginning_for_each_column(
            cells in prop::collection::vec(["[a-z]{0,20}", "[a-z]{0,20}", "[a-z]{1,5}"], 1..5),
        ) {
            let rows: Vec<Vec<Cell>> = cells.iter().map(|row| row.iter().map(Cell::from).collect()).collect();
            let table = plain(&format(&COLUMNS, &rows, None));
            let start = table.lines().next().unwrap().rfind("AGE").unwrap();
            for (line, row) in table.lines().skip(1).zip(&cells) {
                prop_assert_eq!(&line[start..], row[2].as_str());
            }
        }
    }
}
