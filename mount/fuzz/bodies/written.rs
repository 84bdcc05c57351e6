//! What the parsers of tables of contents have in common.

use sifon_mount::digest::Digest;
use sifon_mount::layer::table::{Chunk, ChunkIndex, Table, TableWriter, from_reader};

/// Where `parse` writes, as the table that it then is; nothing if it fails.
pub fn written<E>(parse: impl FnOnce(&mut TableWriter) -> Result<(), E>) -> Option<Table> {
    let mut writer = TableWriter::in_directory(&std::env::temp_dir());
    parse(&mut writer).ok()?;
    let mut bytes = Vec::new();
    writer
        .finish(Digest::of(b""), &mut bytes)
        .expect("memory takes all");
    Some(from_reader(&bytes[..]).expect("what was written is sound"))
}

/// All chunks of a table, each of which must be sound.
pub fn chunks(table: &Table) -> impl Iterator<Item = Chunk<'_>> {
    (0..table.chunk_count()).map(|index| table.chunk(ChunkIndex(index as u32)).expect("sound"))
}
