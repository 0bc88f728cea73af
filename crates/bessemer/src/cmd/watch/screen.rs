//! The dashboard: a progress line, the loss curve, four small curves, the end of the log.
//!
//! Parts that have no room are left out, the loss curve last: below 12 rows there are figures only.

use super::figures::{Figures, State, Step};
use crate::ui::duration;
use indicatif::{HumanBytes, HumanCount};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, LineGauge, Paragraph, Sparkline};

/// Narrower, the small curves are left out.
const WIDE: u16 = 72;
/// Lower, all curves are.
const HIGH: u16 = 12;
const SIDE_WIDTH: u16 = 30;

/// Draws everything for the size that the terminal has now.
pub(super) fn draw(frame: &mut Frame, figures: &Figures) {
    let area = frame.area();
    if area.height < HIGH {
        frame.render_widget(Paragraph::new(figures.summary()), area);
        return;
    }
    let log_height = (area.height / 4).clamp(4, 12);
    let [title, progress, body, log, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(5),
        Constraint::Length(log_height),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_title(frame, title, figures);
    draw_progress(frame, progress, figures);
    if area.width < WIDE {
        draw_loss(frame, body, figures);
    } else {
        let [loss, side] = Layout::horizontal([Constraint::Min(30), Constraint::Length(SIDE_WIDTH)]).areas(body);
        draw_loss(frame, loss, figures);
        draw_side(frame, side, figures);
    }
    draw_log(frame, log, figures);
    frame.render_widget(Paragraph::new(" q closes this; the run goes on".dim()), keys);
}

fn draw_title(frame: &mut Frame, area: Rect, figures: &Figures) {
    let color = match figures.state {
        State::Running => Color::Green,
        State::Finished => Color::Cyan,
        State::Interrupted | State::Gone => Color::Yellow,
        State::Failed => Color::Red,
    };
    let folder = Span::from(format!(" {} ", figures.folder.display())).bold();
    let title = Line::from(vec![folder, " ".into(), Span::styled(figures.state.name(), color)]);
    frame.render_widget(title, area);
}

fn draw_progress(frame: &mut Frame, area: Rect, figures: &Figures) {
    let left = figures.seconds_left().map_or(String::new(), |seconds| format!("  {} left", duration(seconds)));
    let label = format!(" step {}{left} ", figures.progress());
    let ratio = if figures.num_steps == 0 { 0.0 } else { figures.done() as f64 / figures.num_steps as f64 };
    let gauge = LineGauge::default().label(label).ratio(ratio.clamp(0.0, 1.0)).filled_style(Color::Green);
    frame.render_widget(gauge, area);
}

fn draw_loss(frame: &mut Frame, area: Rect, figures: &Figures) {
    let mut title = figures.steps.last().map_or(" no step yet ".to_owned(), |step| format!(" loss {:.4} ", step.loss));
    if let (Some((_, last)), Some((step, best))) = (figures.evaluations.last(), figures.best()) {
        title += &format!("  validation {last:.4}, best {best:.4} at step {} ", HumanCount(step));
    }
    let block = Block::bordered().title(title);
    // Two dots of braille to a column.
    let columns = 2 * usize::from(area.width.saturating_sub(10)).max(1);
    let train: Vec<(f64, f64)> = figures.steps.iter().map(|step| (step.step as f64, step.loss)).collect();
    let train = thinned(&train, columns);
    let validation: Vec<(f64, f64)> = figures.evaluations.iter().map(|(step, loss)| (*step as f64, *loss)).collect();
    let all = || train.iter().chain(&validation);
    let Some((low, high)) = range(all().map(|(_, loss)| *loss)) else {
        frame.render_widget(block, area);
        return;
    };
    let first = figures.steps.first().map_or(0.0, |step| step.step as f64);
    let last = figures.done() as f64;
    let margin = if high > low { 0.05 * (high - low) } else { 0.5 };
    let (bottom, top) = (low - margin, high + margin);
    let curves = vec![
        curve("training", &train, Color::Cyan, GraphType::Line, Marker::Braille),
        curve("validation", &validation, Color::Yellow, GraphType::Scatter, Marker::Dot),
    ];
    let steps = [first, f64::midpoint(first, last), last].map(|step| HumanCount(step as u64).to_string());
    let losses = [bottom, f64::midpoint(bottom, top), top].map(|loss| format!("{loss:.3}"));
    let axis = |bounds, labels| Axis::default().style(Style::new().dim()).bounds(bounds).labels(labels);
    let x = axis([first, last.max(first + 1.0)], steps);
    let y = axis([bottom, top], losses);
    frame.render_widget(Chart::new(curves).block(block).x_axis(x).y_axis(y), area);
}

fn curve<'a>(name: &'a str, points: &'a [(f64, f64)], color: Color, kind: GraphType, marker: Marker) -> Dataset<'a> {
    Dataset::default().name(name).data(points).style(color).graph_type(kind).marker(marker)
}

/// The four small curves, each with its last value.
fn draw_side(frame: &mut Frame, area: Rect, figures: &Figures) {
    let last = figures.steps.last();
    let shown = |show: &dyn Fn(&Step) -> String| last.map_or("-".to_owned(), show);
    let speed = |step: &Step| format!("{} tokens/s", HumanCount(step.tokens_per_second.round() as u64));
    let norm = |step: &Step| step.grad_norm.map_or("not finite".to_owned(), |norm| format!("{norm:.3}"));
    type Value = fn(&Step) -> Option<f64>;
    let curves: [(String, Value); 4] = [
        (shown(&speed), |step| Some(step.tokens_per_second)),
        (format!("learning rate {}", shown(&|step| format!("{:.2e}", step.lr))), |step| Some(step.lr)),
        (format!("gradient norm {}", shown(&norm)), |step| step.grad_norm),
        (format!("memory {}", shown(&|step| HumanBytes(step.peak_memory_bytes).to_string())), |step| {
            Some(step.peak_memory_bytes as f64)
        }),
    ];
    let areas: [Rect; 4] = Layout::vertical([Constraint::Fill(1); 4]).areas(area);
    for ((title, value), area) in curves.into_iter().zip(areas) {
        let points: Vec<(f64, f64)> =
            figures.steps.iter().filter_map(|step| Some((step.step as f64, value(step)?))).collect();
        let block = Block::bordered().title(format!(" {title} "));
        let heights = heights(&thinned(&points, usize::from(area.width.saturating_sub(2))));
        frame.render_widget(Sparkline::default().block(block).data(heights).max(TALLEST).style(Color::Cyan), area);
    }
}

const TALLEST: u64 = 1000;

/// Values between their lowest and highest as heights of bars, none of them nothing.
fn heights(points: &[(f64, f64)]) -> Vec<u64> {
    let Some((low, high)) = range(points.iter().map(|(_, value)| *value)) else { return Vec::new() };
    let height = |value: f64| if high > low { (value - low) / (high - low) } else { 0.5 };
    points.iter().map(|(_, value)| (TALLEST as f64 * (0.1 + 0.9 * height(*value))) as u64).collect()
}

fn draw_log(frame: &mut Frame, area: Rect, figures: &Figures) {
    let rows = usize::from(area.height.saturating_sub(2));
    let newest = &figures.log[figures.log.len().saturating_sub(rows)..];
    let lines: Vec<Line> = newest.iter().map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" log ")), area);
}

/// Lowest and highest of the numbers that are finite.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// At most `count` points: means of neighbours.
fn thinned(points: &[(f64, f64)], count: usize) -> Vec<(f64, f64)> {
    if points.len() <= count {
        return points.to_vec();
    }
    let mean = |points: &[(f64, f64)]| {
        let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / points.len() as f64, y / points.len() as f64)
    };
    (0..count).map(|i| mean(&points[i * points.len() / count..(i + 1) * points.len() / count])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::watch::figures::Watched;
    use crate::cmd::watch::figures::tests::{append, begun, step_line};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::{Value, json};

    /// The rows of the screen for a run whose loss falls from 4 to 2 in 200 of 400 steps.
    fn screen(width: u16, height: u16) -> Vec<String> {
        let (dir, _lock) = begun(400);
        let lines: Vec<Value> = (1..=200).map(|step| step_line(step, 4.0 - step as f64 / 100.0)).collect();
        append(dir.path(), "metrics.jsonl", &lines);
        append(
            dir.path(),
            "metrics.jsonl",
            &[json!({"step": 100, "eval_loss": 3.25}), json!({"step": 200, "eval_loss": 2.5})],
        );
        let saved = json!({"step": 200, "event": "saved", "path": "out/checkpoints/step-00000200"});
        append(
            dir.path(),
            "log.jsonl",
            &[json!({"step": 0, "event": "started", "steps": 400, "done_steps": 0}), saved],
        );
        rows(&Watched::open(dir.path()).unwrap_or_else(|_| panic!("a run")).figures, width, height)
    }

    fn rows(figures: &Figures, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, figures)).unwrap();
        let buffer = terminal.backend().buffer();
        (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect()).collect()
    }

    #[track_caller]
    fn assert_shows(rows: &[String], wanted: &[&str]) {
        for text in wanted {
            assert!(rows.iter().any(|row| row.contains(text)), "{text} on\n{}", rows.join("\n"));
        }
    }

    #[test]
    fn all_figures_are_on_a_screen_of_100_by_30() {
        let rows = screen(100, 30);
        assert_shows(
            &rows,
            &[
                " running",
                "step 200 of 400 (50 %)  50s left",
                " loss 2.0000   validation 2.5000, best 2.5000 at step 200 ",
                " 17,359 tokens/s ",
                " learning rate 2.00e-4 ",
                " gradient norm 1.500 ",
                " memory 3.00 MiB ",
                "step      0  started, 400 steps",
                "step    200  saved out/checkpoints/step-00000200",
                " q closes this",
                // From 3.99 to 2.005, the mean of the last two, and a twentieth around it.
                "1.906",
                "4.089",
            ],
        );
    }

    #[test]
    fn the_curve_falls_from_the_top_left_to_the_bottom_right() {
        let rows = screen(100, 30);
        let is_dot = |symbol: char| ('\u{2801}'..='\u{28ff}').contains(&symbol);
        let column = |row: &String| row.chars().position(is_dot);
        let columns: Vec<usize> = rows.iter().filter_map(column).collect();
        assert!(
            columns.len() > 10 && columns.is_sorted() && columns[columns.len() - 1] > columns[0] + 40,
            "{columns:?}"
        );
    }

    #[test]
    fn a_narrow_screen_has_the_loss_and_a_low_one_figures_only() {
        let narrow = screen(60, 24);
        assert_shows(&narrow, &[" loss 2.0000", "step 200 of 400"]);
        assert!(!narrow.iter().any(|row| row.contains("tokens/s")), "{}", narrow.join("\n"));
        assert_shows(&screen(60, 8), &["loss               2.0000", "speed              17,359 tokens/s"]);
    }

    #[test]
    fn no_size_is_too_small_to_draw() {
        for (width, height) in [(1, 1), (3, 40), (200, 2), (20, 12), (71, 12), (72, 12), (300, 100)] {
            screen(width, height);
        }
    }

    #[test]
    fn a_run_without_a_step_and_one_of_a_single_step_are_drawn() {
        let (dir, _lock) = begun(400);
        let mut watched = Watched::open(dir.path()).unwrap_or_else(|_| panic!("a run"));
        assert_shows(&rows(&watched.figures, 100, 30), &["running", "no step yet", "step 0 of 400 (0 %)"]);
        append(dir.path(), "metrics.jsonl", &[step_line(1, 4.0)]);
        watched.refresh().unwrap_or_else(|_| panic!("files"));
        assert_shows(&rows(&watched.figures, 100, 30), &["loss 4.0000", "3.500", "4.500"]);
    }

    #[test]
    fn many_points_become_means_of_neighbours() {
        let points: Vec<(f64, f64)> = (0..10).map(|x| (f64::from(x), f64::from(2 * x))).collect();
        assert_eq!(thinned(&points, 4), [(0.5, 1.0), (3.0, 6.0), (5.5, 11.0), (8.0, 16.0)]);
        assert_eq!(thinned(&points, 10), points);
        assert_eq!(heights(&[(0.0, 5.0), (1.0, 6.0), (2.0, 7.0)]), [100, 550, 1000]);
        assert_eq!(heights(&[(0.0, 5.0)]), [550]);
    }
}
