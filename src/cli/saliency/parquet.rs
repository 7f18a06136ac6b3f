//! `cells.csv` as Parquet: the same columns, with types, to be read faster.

use std::io::Write;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use ::parquet::errors::Result;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;

use stepflow::saliency::{Cell, HeadCell};

const SCHEMA: &str = "message cells {
    required binary run_id (UTF8);
    required binary method (UTF8);
    required int32 layer;
    required int32 query_step;
    required int32 key_step;
    required binary query_segment (UTF8);
    required binary key_segment (UTF8);
    required int64 n_pairs;
    required binary metric (UTF8);
    optional double value;
    optional double se;
    optional int32 n_probes;
    optional double eps;
    optional boolean below_noise;
    optional double curvature;
}";

/// A file of these row groups.
pub fn table<'a>(groups: impl Iterator<Item = impl Iterator<Item = Cell<'a>>>) -> Result<Vec<u8>> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer =
        SerializedFileWriter::new(Vec::new(), Arc::new(parse_message_type(SCHEMA)?), Arc::new(properties))?;
    for cells in groups {
        let mut group = writer.next_row_group()?;
        write(&mut group, &cells.collect::<Vec<_>>())?;
        group.close()?;
    }
    writer.into_inner()
}

const HEADS: &str = "message heads {
    required binary run_id (UTF8);
    required int32 layer;
    required int32 head;
    required int32 query_step;
    required int32 key_step;
    required int64 n_pairs;
    required double saliency;
    required double signed;
}";

/// A file of the cells of heads, a row group a layer.
pub fn heads<'a>(groups: impl Iterator<Item = impl Iterator<Item = HeadCell<'a>>>) -> Result<Vec<u8>> {
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(parse_message_type(HEADS)?), Arc::new(properties))?;
    for cells in groups {
        let cells: Vec<_> = cells.collect();
        let number = |of: fn(&HeadCell<'_>) -> usize| cells.iter().map(|cell| of(cell) as i32).collect::<Vec<_>>();
        let numbers = [
            number(|cell| cell.layer),
            number(|cell| cell.head),
            number(|cell| cell.query_step),
            number(|cell| cell.key_step),
        ];
        let value = |of: fn(&HeadCell<'_>) -> f64| cells.iter().map(of).collect::<Vec<_>>();
        let mut group = writer.next_row_group()?;
        let runs: Vec<ByteArray> = cells.iter().map(|cell| cell.run_id.as_bytes().to_vec().into()).collect();
        required::<ByteArrayType, _>(&mut group, &runs)?;
        for numbers in &numbers {
            required::<Int32Type, _>(&mut group, numbers)?;
        }
        required::<Int64Type, _>(&mut group, &cells.iter().map(|cell| cell.n_pairs as i64).collect::<Vec<_>>())?;
        required::<DoubleType, _>(&mut group, &value(|cell| cell.saliency))?;
        required::<DoubleType, _>(&mut group, &value(|cell| cell.signed))?;
        group.close()?;
    }
    writer.into_inner()
}

/// A row group, column by column.
fn write<W: Write + Send>(group: &mut SerializedRowGroupWriter<'_, W>, cells: &[Cell<'_>]) -> Result<()> {
    let text = |of: &dyn Fn(&Cell<'_>) -> String| -> Vec<ByteArray> {
        cells.iter().map(|cell| of(cell).into_bytes().into()).collect()
    };
    let step = |of: &dyn Fn(&Cell<'_>) -> usize| -> Vec<i32> { cells.iter().map(|cell| of(cell) as i32).collect() };
    required::<ByteArrayType, _>(group, &text(&|cell| cell.run_id.to_owned()))?;
    required::<ByteArrayType, _>(group, &text(&|cell| cell.method.to_owned()))?;
    required::<Int32Type, _>(group, &step(&|cell| cell.layer))?;
    required::<Int32Type, _>(group, &step(&|cell| cell.query_step))?;
    required::<Int32Type, _>(group, &step(&|cell| cell.key_step))?;
    required::<ByteArrayType, _>(group, &text(&|cell| cell.query_segment.to_string()))?;
    required::<ByteArrayType, _>(group, &text(&|cell| cell.key_segment.to_string()))?;
    required::<Int64Type, _>(group, &cells.iter().map(|cell| cell.n_pairs as i64).collect::<Vec<_>>())?;
    required::<ByteArrayType, _>(group, &text(&|cell| cell.metric.to_owned()))?;
    optional::<DoubleType, _>(group, cells.iter().map(|cell| cell.value))?;
    optional::<DoubleType, _>(group, cells.iter().map(|cell| cell.se))?;
    optional::<Int32Type, _>(group, cells.iter().map(|cell| cell.n_probes.map(|n| n as i32)))?;
    optional::<DoubleType, _>(group, cells.iter().map(|cell| cell.eps))?;
    optional::<BoolType, _>(group, cells.iter().map(|cell| cell.below_noise))?;
    optional::<DoubleType, _>(group, cells.iter().map(|cell| cell.curvature))
}

/// The next column, which has a value in every row.
fn required<T: DataType, W: Write + Send>(group: &mut SerializedRowGroupWriter<'_, W>, values: &[T::T]) -> Result<()> {
    let mut column = group.next_column()?.expect("as many columns as the schema has");
    column.typed::<T>().write_batch(values, None, None)?;
    column.close()
}

/// The next column, in which some rows have none.
fn optional<T: DataType, W: Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: impl Iterator<Item = Option<T::T>> + Clone,
) -> Result<()> {
    let there: Vec<i16> = values.clone().map(|value| i16::from(value.is_some())).collect();
    let mut column = group.next_column()?.expect("as many columns as the schema has");
    column.typed::<T>().write_batch(&values.flatten().collect::<Vec<_>>(), Some(&there), None)?;
    column.close()
}
