//! Drawing SVG, and turning it into PNG.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use anyhow::Context as _;
use base64::Engine as _;
use resvg::tiny_skia::{Pixmap, PremultipliedColorU8, Transform};
use resvg::usvg::{Options, Tree, fontdb};

/// Pixels for a unit of length.
const ZOOM: f32 = 2.0;

/// A drawing.
pub struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    /// Text; `anchor` is start, middle or end.
    pub fn text(&mut self, x: f64, y: f64, anchor: &str, size: f64, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}">{text}</text>"#
        );
    }

    /// Text from bottom to top, its middle at this point.
    pub fn upright_text(&mut self, x: f64, y: f64, size: f64, text: &str) {
        let text = escape(text);
        let turn = format!("rotate(-90 {x:.1} {y:.1})");
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="middle" font-size="{size}" transform="{turn}">{text}</text>"#
        );
    }

    /// A line; `style` is SVG attributes.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), style: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(self.body, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {style}/>"#);
    }

    /// Lines from point to point.
    pub fn path(&mut self, points: impl Iterator<Item = (f64, f64)>, style: &str) {
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(self.body, r#"<polyline points="{}" fill="none" {style}/>"#, points.join(" "));
    }

    /// A rectangle; `style` is SVG attributes.
    pub fn rectangle(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), style: &str) {
        let _ = writeln!(self.body, r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" {style}/>"#);
    }

    /// A picture of `columns` times `rows` squares, stretched over a rectangle. `colour` of a column and a row; `None`
    /// leaves it clear.
    pub fn squares(
        &mut self,
        (x, y): (f64, f64),
        (width, height): (f64, f64),
        (columns, rows): (usize, usize),
        colour: impl Fn(usize, usize) -> Option<[u8; 3]>,
    ) {
        // Several pixels a square: what shows the picture may smooth them where they meet.
        let fine = |length: f64, n: usize| (f64::from(ZOOM) * length / n.max(1) as f64).ceil() as usize;
        let (across, down) = (fine(width, columns), fine(height, rows));
        let Some(mut pixels) = Pixmap::new((columns * across) as u32, (rows * down) as u32) else { return };
        let paint = |[red, green, blue]: [u8; 3]| PremultipliedColorU8::from_rgba(red, green, blue, 255);
        for (row, lines) in pixels.pixels_mut().chunks_exact_mut(columns * across * down).enumerate() {
            let (first, others) = lines.split_at_mut(columns * across);
            for (column, square) in first.chunks_exact_mut(across).enumerate() {
                square.fill(colour(column, row).and_then(paint).unwrap_or(PremultipliedColorU8::TRANSPARENT));
            }
            others.chunks_exact_mut(first.len()).for_each(|line| line.copy_from_slice(first));
        }
        let png = base64::engine::general_purpose::STANDARD.encode(pixels.encode_png().expect("it is in memory"));
        let _ = writeln!(
            self.body,
            r#"<image x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" preserveAspectRatio="none" image-rendering="optimizeSpeed" href="data:image/png;base64,{png}"/>"#
        );
    }

    /// The whole file.
    pub fn finish(self) -> String {
        let Self { width, height, body } = self;
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" "#,
                r##"font-family="sans-serif" fill="#222">"##,
                "\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
            ),
            w = width,
            h = height,
            body = body
        )
    }
}

/// A drawing as PNG.
pub fn png(svg: &str) -> anyhow::Result<Vec<u8>> {
    static FONTS: LazyLock<Arc<fontdb::Database>> = LazyLock::new(|| {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        let family = fonts.faces().next().map(|face| face.families[0].0.clone()).unwrap_or_default();
        fonts.set_sans_serif_family(family);
        Arc::new(fonts)
    });
    let options = Options { fontdb: FONTS.clone(), ..Options::default() };
    let tree = Tree::from_str(svg, &options)?;
    let size = tree.size();
    let mut pixels =
        Pixmap::new((size.width() * ZOOM) as u32, (size.height() * ZOOM) as u32).context("an empty picture")?;
    resvg::render(&tree, Transform::from_scale(ZOOM, ZOOM), &mut pixels.as_mut());
    Ok(pixels.encode_png()?)
}

/// Text as it stands in SVG and HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
