//! Plots of curves, as SVG and as PNG: axes, a grid, lines with a legend, marks with words.
//!
//! Both come from one drawing by `plotters`. The PNG is drawn at twice its size and averaged down, which smooths what
//! `plotters` does not. Its text needs no font of the system: the characters of DejaVu Sans that plots use are in the
//! program (`assets/`); an SVG names `sans-serif`.
//!
//! # Invariants
//! - Lines are cut at [`Axis::range`], points that are not finite and marks beyond the axis are left out.
//! - A drawing is a function of the plot: no time, no machine, no random number.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::ops::Range;
use std::sync::Once;

/// A plot.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Along the bottom.
    pub x: Axis,
    /// Along the left side.
    pub y: Axis,
    /// In the order they are drawn.
    pub lines: Vec<Line>,
    /// Over the lines.
    pub marks: Vec<Mark>,
}

/// An axis.
#[derive(Clone, Debug, Default)]
pub struct Axis {
    /// What it measures, with its unit.
    pub label: String,
    /// Decades have the same length; values must be above 0.
    pub is_log: bool,
    /// From where to where; none: what the points need.
    pub range: Option<(f64, f64)>,
}

/// A curve.
#[derive(Clone, Debug)]
pub struct Line {
    /// In the legend.
    pub label: String,
    /// In the order they are joined.
    pub points: Vec<(f64, f64)>,
    /// Thin and pale, behind what it is the raw form of.
    pub is_faint: bool,
}

/// A place on the x axis.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Beside it.
    pub label: String,
    /// Where.
    pub x: f64,
}

/// Units of the drawing: pixels of the SVG.
const SIZE: (u32, u32) = (960, 600);
/// Pixels of the PNG a unit has, once it is averaged down.
const PNG_SCALE: u32 = 2;
/// Pixels that are averaged into one, along each side.
const SMOOTHING: u32 = 2;

const INK: RGBColor = RGBColor(40, 44, 52);
const GRID: RGBColor = RGBColor(222, 225, 230);
const FAINT_GRID: RGBColor = RGBColor(241, 243, 245);
/// Of lines, one after the other; told apart by the colour-blind (Okabe & Ito 2008).
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

impl Plot {
    /// As SVG.
    pub fn svg(&self) -> String {
        let mut text = String::new();
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = self.draw(&root, 1);
        drop(root);
        drawn.unwrap_or_else(|e| panic!("Plot::svg: {e}"));
        text
    }

    /// As PNG.
    pub fn png(&self) -> Vec<u8> {
        let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
        let fine = (width * SMOOTHING, height * SMOOTHING);
        let mut pixels = vec![0; 3 * (fine.0 * fine.1) as usize];
        {
            let root = BitMapBackend::with_buffer(&mut pixels, fine).into_drawing_area();
            self.draw(&root, PNG_SCALE * SMOOTHING).unwrap_or_else(|e| panic!("Plot::png: {e}"));
        }
        encode(&averaged(&pixels, fine.0 as usize), width, height)
    }

    fn draw<DB: DrawingBackend>(&self, root: &DrawingArea<DB, Shift>, unit: u32) -> Drawn<DB> {
        register_fonts();
        let (x, y) = (Scale::new(&self.x, self.xs()), Scale::new(&self.y, self.ys()));
        let text = |size: u32| ("sans-serif", size * unit).into_font().color(&INK);
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(root)
            .caption(&self.title, text(20))
            .margin(16 * unit)
            .x_label_area_size(52 * unit)
            .y_label_area_size(66 * unit)
            .build_cartesian_2d(x.range.clone(), y.range.clone())?;
        chart
            .configure_mesh()
            .x_desc(&self.x.label)
            .y_desc(&self.y.label)
            .x_labels(x.num_labels(11))
            .y_labels(y.num_labels(9))
            .x_label_formatter(&|value| x.shown(*value))
            .y_label_formatter(&|value| y.shown(*value))
            .max_light_lines(5)
            .bold_line_style(GRID.stroke_width(unit))
            .light_line_style(FAINT_GRID.stroke_width(unit))
            .axis_style(INK.stroke_width(unit))
            .label_style(text(14))
            .axis_desc_style(text(16))
            .set_all_tick_mark_size(5 * unit)
            .draw()?;
        for (line, color) in self.lines.iter().zip(COLORS.iter().cycle()) {
            let (color, width) = if line.is_faint { (color.mix(0.35), 1) } else { (color.mix(1.0), 3) };
            let style = color.stroke_width(width * unit);
            let on_axes = |&(px, py): &(f64, f64)| Some((x.on_axis(px)?, y.on_axis(py)?));
            let points: Vec<_> = line.points.iter().filter_map(on_axes).collect();
            for run in clipped(&points, &y.range) {
                chart.draw_series(LineSeries::new(run, style))?;
            }
            chart
                .draw_series(LineSeries::new([], style))?
                .label(&line.label)
                .legend(move |(px, py)| PathElement::new([(px, py), (px + 24 * unit as i32, py)], style));
        }
        for (number, mark) in self.marks.iter().enumerate() {
            let Some(at) = x.on_axis(mark.x).filter(|at| (x.range.start..=x.range.end).contains(at)) else { continue };
            let color = COLORS[(self.lines.len() + number) % COLORS.len()];
            let ends = [(at, y.range.start), (at, y.range.end)];
            let (dash, gap) = (7 * unit, 5 * unit);
            chart.draw_series(DashedLineSeries::new(ends, dash, gap, color.stroke_width(2 * unit)))?;
            // Words stand at the side where there is more room, one mark's below the other's.
            let is_left = at > (x.range.start + x.range.end) / 2.0;
            let (side, hpos) = if is_left { (-1, HPos::Right) } else { (1, HPos::Left) };
            let (left, top) = chart.backend_coord(&(at, y.range.end));
            let (left, top) = (left + side * 8 * unit as i32, top + (8 + 24 * number as i32) * unit as i32);
            let style = ("sans-serif", 15 * unit).into_font().color(&color).pos(Pos::new(hpos, VPos::Top));
            root.draw(&Text::new(mark.label.as_str(), (left, top), style))?;
        }
        let height = chart.plotting_area().dim_in_pixel().1 as i32;
        let (margin, words) = (14 * unit as i32, 15 * unit as i32);
        let legend_height = 2 * margin + words * self.lines.len() as i32;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::Coordinate(margin, height - margin - legend_height))
            .margin(14 * unit)
            .legend_area_size(34 * unit)
            .border_style(GRID.stroke_width(unit))
            .background_style(WHITE.mix(0.9))
            .label_font(text(15))
            .draw()?;
        root.present()
    }

    fn xs(&self) -> impl Iterator<Item = f64> {
        let marks = self.marks.iter().map(|mark| mark.x);
        self.lines.iter().flat_map(|line| &line.points).map(|point| point.0).chain(marks)
    }

    fn ys(&self) -> impl Iterator<Item = f64> {
        self.lines.iter().flat_map(|line| &line.points).map(|point| point.1)
    }
}

/// Values to places on a linear axis.
struct Scale {
    is_log: bool,
    range: Range<f64>,
}

impl Scale {
    fn new(axis: &Axis, values: impl Iterator<Item = f64>) -> Self {
        let on_axis = |value: f64| if axis.is_log { value.log10() } else { value };
        let finite = values.map(on_axis).filter(|value| value.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let margin = if axis.is_log { 0.0 } else { 0.04 * (high - low) };
        let given = axis.range.map(|(low, high)| (on_axis(low), on_axis(high)));
        let (low, high) = given.unwrap_or((low - margin, high + margin));
        // Nothing, or one value: an axis needs a length.
        let range = match high - low {
            length if length > 0.0 && length.is_finite() => low..high,
            _ if low.is_finite() => low - 0.5..low + 0.5,
            _ => 0.0..1.0,
        };
        Self { is_log: axis.is_log, range }
    }

    /// Where a value lies, though it may be beyond the range.
    fn on_axis(&self, value: f64) -> Option<f64> {
        Some(if self.is_log { value.log10() } else { value }).filter(|value| value.is_finite())
    }

    /// Labels that fit, whole decades on a logarithmic axis.
    fn num_labels(&self, most: usize) -> usize {
        let decades = (self.range.end - self.range.start).ceil() as usize + 1;
        if self.is_log && decades > 2 { decades.min(most) } else { most }
    }

    fn shown(&self, place: f64) -> String {
        let value = if self.is_log { 10f64.powf(place) } else { place };
        match value.abs() {
            0.0 => "0".to_owned(),
            size if (1e-3..1e5).contains(&size) && !self.is_log => trimmed(format!("{value:.4}")),
            _ => shown_rate(value),
        }
    }
}

/// What lies within `range` of a line's second coordinate, cut where it crosses an end.
fn clipped(points: &[(f64, f64)], range: &Range<f64>) -> Vec<Vec<(f64, f64)>> {
    let is_inside = |point: &(f64, f64)| (range.start..=range.end).contains(&point.1);
    let mut runs: Vec<Vec<(f64, f64)>> = vec![points.iter().copied().take(1).filter(is_inside).collect()];
    for (&a, &b) in points.iter().zip(&points[1.min(points.len())..]) {
        // Where the way from one point to the next crosses an end, in the order it is gone.
        let crossing = |end: f64| (a.0 + (b.0 - a.0) * (end - a.1) / (b.1 - a.1), end);
        let is_between = |end: &f64| (a.1 < *end) != (b.1 < *end);
        let mut ends: Vec<f64> = [range.start, range.end].into_iter().filter(is_between).collect();
        ends.sort_by(|p, q| (p - a.1).abs().total_cmp(&(q - a.1).abs()));
        if !is_inside(&a) && !ends.is_empty() {
            runs.push(Vec::new());
        }
        let run = runs.last_mut().expect("clipped: there is one from the beginning");
        run.extend(ends.into_iter().map(crossing).chain([b].into_iter().filter(is_inside)));
    }
    // A point on the edge is both itself and a crossing.
    runs.iter_mut().for_each(Vec::dedup);
    runs
}

/// `3.2e-4`, `1e-3`: at most two digits.
pub(crate) fn shown_rate(value: f64) -> String {
    let text = format!("{value:.1e}");
    text.replace(".0e", "e")
}

fn trimmed(text: String) -> String {
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn register_fonts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let font = include_bytes!("../assets/DejaVuSans-subset.ttf");
        let registered = register_font("sans-serif", FontStyle::Normal, font);
        assert!(registered.is_ok(), "register_fonts: the font in the program is not one");
    });
}

/// The mean of every square of [`SMOOTHING`] pixels along each side. `pixels`: `[height, width, 3]`.
fn averaged(pixels: &[u8], width: usize) -> Vec<u8> {
    let side = SMOOTHING as usize;
    let mean = |row: usize, column: usize, channel: usize| {
        let squares = (0..side * side).map(|i| (side * row + i / side) * width + side * column + i % side);
        let sum: usize = squares.map(|pixel| usize::from(pixels[3 * pixel + channel])).sum();
        ((sum + side * side / 2) / (side * side)) as u8
    };
    let (rows, columns) = (pixels.len() / 3 / width / side, width / side);
    let places = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    places.flat_map(|(row, column)| (0..3).map(move |channel| mean(row, column, channel))).collect()
}

/// `pixels`: `[height, width, 3]`.
fn encode(pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(pixels)?;
        writer.finish()
    });
    written.unwrap_or_else(|e| panic!("encode: {e}"));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        let points: Vec<(f64, f64)> = (0..50).map(|i| (1e-6 * 1.3f64.powi(i), 3.0 + f64::from(i).sin())).collect();
        Plot {
            title: "A title".to_owned(),
            x: Axis { label: "rate".to_owned(), is_log: true, range: None },
            y: Axis { label: "loss".to_owned(), range: Some((2.5, 3.5)), ..Axis::default() },
            lines: vec![Line { label: "a line".to_owned(), points, is_faint: false }],
            marks: vec![Mark { label: "here".to_owned(), x: 1e-4 }],
        }
    }

    #[test]
    fn an_svg_has_every_word_of_the_plot_and_labels_whole_decades() {
        let svg = plot().svg();
        for word in ["A title", "rate", "loss", "a line", "here", "1e-6", "1e-3", "2.8"] {
            assert!(svg.contains(&format!("\n{word}\n")), "{word} in {svg}");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn a_png_is_decoded_to_a_picture_of_its_size_that_is_white_at_the_corner_and_blue_on_the_line() {
        let bytes = plot().png();
        let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE));
        let count = |color: RGBColor| pixels.chunks(3).filter(|rgb| *rgb == [color.0, color.1, color.2]).count();
        assert_eq!(pixels[..3], [255, 255, 255]);
        assert!(count(COLORS[0]) > 10_000, "{} blue pixels", count(COLORS[0]));
        assert!(count(COLORS[1]) > 1_000, "{} pixels of the mark", count(COLORS[1]));
        assert!(count(INK) > 1_000, "{} pixels of text", count(INK));
        assert_eq!(bytes, plot().png());
    }

    #[test]
    fn a_plot_of_nothing_of_one_point_and_of_what_is_not_finite_is_drawn() {
        for points in [vec![], vec![(1.0, 2.0)], vec![(1.0, f64::NAN), (2.0, f64::INFINITY), (0.0, 1.0)]] {
            let mut plot = plot();
            plot.marks.clear();
            plot.y.range = None;
            plot.lines[0].points = points;
            assert!(plot.svg().contains("a line"));
        }
    }

    #[test]
    fn a_line_is_cut_where_it_leaves_the_range_and_goes_on_where_it_comes_back() {
        let points = [(0.0, 0.5), (1.0, 2.5), (2.0, 2.0), (3.0, 0.0), (4.0, -1.0), (5.0, 3.0)];
        let runs = clipped(&points, &(0.0..1.0));
        let want = [vec![(0.0, 0.5), (0.25, 1.0)], vec![(2.5, 1.0), (3.0, 0.0)], vec![(4.25, 0.0), (4.5, 1.0)]];
        assert_eq!(runs, want);
        assert_eq!(clipped(&[], &(0.0..1.0)), [vec![]]);
    }

    #[test]
    fn numbers_on_an_axis_are_as_short_as_they_can_be() {
        let (log, linear) = (Scale { is_log: true, range: -3.0..1.0 }, Scale { is_log: false, range: 0.0..1.0 });
        assert_eq!([log.shown(-4.0), log.shown(-3.5), log.shown(0.0)], ["1e-4", "3.2e-4", "1e0"]);
        assert_eq!([linear.shown(2.5), linear.shown(0.0), linear.shown(1e6)], ["2.5", "0", "1e6"]);
    }
}
