"""What proves the final chain: certificates of frames, and the line of CONFIGs with theirs.

A certificate speaks of one frame and of everything below it in its epoch. So one for each settled
batch is enough, and of old ones few: those of the CONFIGs stay, since each ends an epoch and is
what a newcomer verifies, and so do the newest 1,024, to tell somebody who is a little behind, and
one in each MiB of the log, so that frames that wait for the archive can be proven there.

A certificate of another epoch than the frame's proves nothing to those who do not know that epoch
(what a later epoch says of the CONFIG that it starts from), so it is not kept here.
"""

from collections.abc import Iterable
from typing import Final
from zlib import crc32

import apsw

from basenet.engine.ballot import first_seq
from basenet.errors import CorruptionError
from basenet.journal import schema, sealed
from basenet.journal.records import CertifiedConfig
from basenet.units import Seq
from basenet.wire.certificate import Certificate, decode_certificate, encode_certificate
from basenet.wire.frame import Frame, Head, Kind, decode_frame
from basenet.wire.payload import decode_config

CERTIFICATES_KEPT: Final = 1_024


def keep_certificate(
    connection: apsw.Connection, number: int, certificate: Certificate, head: Head
) -> None:
    """Keep what proves the frame ``head``, if it is of the same epoch."""
    assert certificate.hash == head.hash, "a certificate of another frame"
    assert certificate.height == head.seq, "a certificate of another height"
    if certificate.epoch == head.epoch:
        connection.execute(
            "INSERT OR REPLACE INTO certificate VALUES (?, ?)",
            (schema.frame_id(number, head.seq), _close(certificate)),
        )


def thin_certificates(connection: apsw.Connection, number: int) -> None:
    """Drop old certificates but those of CONFIGs, and the last in each MiB of the log."""
    connection.execute(
        "DELETE FROM certificate WHERE id IN (SELECT id FROM (SELECT certificate.id AS id, "
        "frame.bytes_end >> 20 AS place, lead(frame.bytes_end >> 20) OVER "
        "(ORDER BY certificate.id) AS next FROM certificate LEFT JOIN frame "
        "ON frame.id = certificate.id WHERE certificate.id BETWEEN ?1 AND ?2) "
        "WHERE (place IS NULL OR place = next) AND id <= (SELECT id FROM certificate "
        "WHERE id BETWEEN ?1 AND ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3)) "
        "AND id NOT IN (SELECT id FROM config WHERE id BETWEEN ?1 AND ?2)",
        (*schema.frame_ids(number), CERTIFICATES_KEPT),
    )


def find_certificate(connection: apsw.Connection, number: int, seq: int) -> Certificate | None:
    """Return the lowest certificate at or above ``seq`` in the epoch of the frame ``seq``.

    A CONFIG is the last frame of its epoch; only the genesis is the first of its own.
    """
    rows = list(
        connection.execute(
            "SELECT record FROM certificate WHERE id = (SELECT min(id) FROM certificate "
            "WHERE id BETWEEN ?1 AND ?2) AND NOT EXISTS (SELECT 1 FROM config "
            "WHERE id >= ?1 AND id < certificate.id "
            "AND id > (SELECT min(id) FROM config WHERE id BETWEEN ?3 AND ?2))",
            (*schema.frame_ids(number, seq), schema.frame_ids(number)[0]),
        )
    )
    if not rows:
        return None
    return _reopen(rows[0][0], f"a certificate at or above frame {seq}")


def find_last_certificate(
    connection: apsw.Connection, number: int, first: int, last: int
) -> Certificate | None:
    """Return the certificate of the highest frame of ``first`` .. ``last`` that has one."""
    rows = list(
        connection.execute(
            "SELECT record FROM certificate WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1",
            schema.frame_ids(number, first, last),
        )
    )
    return _reopen(rows[0][0], f"a certificate up to frame {last}") if rows else None


# The line of CONFIGs.


def keep_config(
    connection: apsw.Connection,
    number: int,
    seq: Seq,
    record: bytes,
    certificate: Certificate | None,
) -> None:
    """Add a CONFIG that is at hand to the line."""
    connection.execute(
        "INSERT OR REPLACE INTO config VALUES (?, ?, ?, ?)",
        (
            schema.frame_id(number, seq),
            crc32(record),
            certificate and _close(certificate),
            record,
        ),
    )


def keep_configs(
    connection: apsw.Connection, number: int, chain: Iterable[CertifiedConfig]
) -> None:
    """Keep CONFIGs that came from elsewhere, verified, with what proves them."""
    for record, certificate in chain:
        frame = decode_frame(record)
        assert isinstance(frame, Frame), "a CONFIG of version 1"
        assert frame.head.kind == Kind.CONFIG, "another frame among the CONFIGs"
        keep_config(connection, number, frame.head.seq, record, certificate)
        # What its voters say of a genesis is their consent, and no certificate of a place.
        is_genesis = frame.head.seq == first_seq(decode_config(frame.payload))
        if certificate is not None and not is_genesis:
            keep_certificate(connection, number, certificate, frame.head)


def keep_settled_config(
    connection: apsw.Connection, number: int, head: Head, certificate: Certificate | None
) -> None:
    """Add a CONFIG that lies in the branch and is final now."""
    is_proof = certificate is not None and (certificate.hash, certificate.epoch) == (
        head.hash,
        head.epoch,
    )
    connection.execute(
        "INSERT OR REPLACE INTO config SELECT ?, crc, ?, record FROM branch "
        "WHERE number = ? AND hash = ?",
        (
            schema.frame_id(number, head.seq),
            _close(certificate) if certificate is not None and is_proof else None,
            number,
            head.hash,
        ),
    )
    assert connection.changes() == 1, "a CONFIG settles that is not in the branch"


def load_config_chain(connection: apsw.Connection, number: int) -> tuple[CertifiedConfig, ...]:
    """Return all CONFIG frames of the lineage since its genesis, with what proves them."""
    rows = list(
        connection.execute(
            "SELECT id, crc, certificate, record FROM config WHERE id BETWEEN ? AND ? ORDER BY id",
            schema.frame_ids(number),
        )
    )
    chain = []
    for row_id, crc, certificate, record in rows:
        what = f"the CONFIG frame {schema.seq_of(row_id)}"
        if crc32(record) != crc:
            raise CorruptionError(f"{what} reads back differently")
        chain.append((record, None if certificate is None else _reopen(certificate, what)))
    return tuple(chain)


def _close(certificate: Certificate) -> bytes:
    return sealed.close(encode_certificate(certificate))


def _reopen(stored: bytes, what: str) -> Certificate:
    return decode_certificate(sealed.reopen(stored, what))
