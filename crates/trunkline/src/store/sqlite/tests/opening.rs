use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::super::schema::VERSION;
use super::*;

/// Opens and fails; the reason, after checking that nothing in the directory changed.
fn refused(bed: &Bed) -> String {
    let state = || {
        let mut files: Vec<_> = fs::read_dir(bed.dir.path())
            .unwrap()
            .map(|file| file.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = state();
    let error = SqliteStore::open(bed.dir.path(), bed.options()).unwrap_err();
    assert!(state() == before, "{error:?} changed a file");
    assert_eq!(error.code(), Code::StoreFailed);
    assert!(error.detail_str("next").is_some() && error.detail_str("path").is_some(), "{error:?}");
    error.detail_str("reason").unwrap().to_owned()
}

async fn filled() -> (Bed, std::path::PathBuf) {
    let bed = Bed::new();
    let store = bed.open();
    store.lot_put((0..200).map(|n| entry(LotState::Dead, n)).collect()).await.unwrap();
    store.close().await;
    let file = bed.dir.path().join("state.db");
    (bed, file)
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_left_alone() {
    let (bed, file) = filled().await;
    let set = |version: i64| rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", version).unwrap();
    set(VERSION + 1);
    assert_eq!(refused(&bed), "newer");
    set(VERSION);
    assert_eq!(bed.open().lot_count(&LotFilter::default()).await.unwrap(), 200);
}

#[tokio::test]
async fn a_file_that_is_no_store_is_left_alone() {
    let (bed, file) = filled().await;
    let good = fs::read(&file).unwrap();
    let mut noise = vec![0; 20_000];
    rand::fill(&mut noise[..]);
    let mut header = good.clone();
    header[30..60].fill(0xff);
    let mut page = good.clone();
    let at = 4096 * 12;
    page[at..at + 64].fill(0xa5);
    for (what, bytes) in
        [("noise", noise), ("a text", b"hello".to_vec()), ("half", good[..good.len() / 2].to_vec()), ("header", header), ("page", page)]
    {
        fs::write(&file, bytes).unwrap();
        assert_eq!(refused(&bed), "damaged", "{what}");
    }
    fs::remove_file(&file).unwrap();
    rusqlite::Connection::open(&file).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
    assert_eq!(refused(&bed), "damaged", "of another program");
    fs::write(&file, b"").unwrap();
    drop(bed.open()); // its creation was cut short
}

#[tokio::test]
async fn read_only_files_and_directories_are_refused() {
    let (bed, file) = filled().await;
    let mode = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&file, 0o400);
    assert_eq!(refused(&bed), "read_only");
    mode(&file, 0o600);
    mode(bed.dir.path(), 0o500);
    assert_eq!(refused(&bed), "read_only");
    mode(bed.dir.path(), 0o700);
    drop(bed.open());
}

#[test]
fn a_missing_directory_names_init() {
    let bed = Bed::new();
    let error = SqliteStore::open(&bed.dir.path().join("none"), bed.options()).unwrap_err();
    assert_eq!(error.detail_str("reason"), Some("missing"));
    assert!(error.detail_str("next").unwrap().contains("trunkline init"));
}

#[test]
fn many_may_open_a_new_directory_at_once() {
    let bed = Bed::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| drop(bed.open()));
        }
    });
    let mode = fs::metadata(bed.dir.path().join("state.db")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_full_disk_is_an_answer_and_passes() {
    let bed = Bed::new();
    let store = bed.open();
    let pages = |n: i64| move |db: &Db| db.conn.pragma_update(None, "max_page_count", n).map_err(|_| Error::store("test"));
    store.write(1, pages(60)).await.unwrap();
    let mut large = entry(LotState::Dead, 1);
    large.message.payload = Bytes::from(vec![0; 1 << 20]);
    let error = store.lot_put(vec![large.clone()]).await.unwrap_err();
    assert_eq!((error.detail_str("reason"), error.retryable()), (Some("disk_full"), true));
    assert_eq!(store.lot_count(&LotFilter::default()).await.unwrap(), 0);
    store.write(1, pages(1 << 30)).await.unwrap();
    store.lot_put(vec![large]).await.unwrap();
    assert_eq!(store.lot_count(&LotFilter::default()).await.unwrap(), 1);
}
