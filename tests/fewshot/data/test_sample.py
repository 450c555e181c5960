"""The packaged pictures."""

from crome.fewshot.data.reading import read_images


def test_the_packaged_sample_unpacks_once(tmp_path):
    from crome.fewshot.data.sample import CLASSES, unpack_sample

    folder = unpack_sample(tmp_path)
    data = read_images(folder)
    assert data.classes == sorted(CLASSES)
    assert [len(data.train), len(data.test)] == [160, 1000]
    first = data.train[0].path
    first.write_bytes(b"mine")
    unpack_sample(tmp_path)
    assert first.read_bytes() == b"mine"
