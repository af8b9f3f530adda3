"""Tells where a text gives away that its writer was helped.

A rewrite is learned from as if the policy had thought of it alone. So it may not speak of what only
a helped writer has seen: feedback, an attempt before this one, an answer that was known. None of
these words leaks by itself ("feedback loop", "attempt to factor", "expected value"): a rule is a
thing that was given, together with a word that refers to it ("the critic says", "according to").
"""

import re

from mlxreflect.prompts.roles import ROLES

MIN_WORKING = 2  # characters of thought; less only restates the answer
LONGEST_PHRASE = 60  # characters of it in a reason


def leak(text: str, spans: dict[str, list[int]], style: str, question: str = "") -> str:
    """Why a text gives away that it was helped, or has no working; empty when it does not.

    question: the problem as it is shown, of which a text may speak. Linear in the text's length.
    """
    if phrase := giveaway(text, question):
        return f"it says {phrase!r}"
    start, end = spans.get("think", [0, 0])
    if style != "direct" and len(text[start:end].strip()) < MIN_WORKING:
        return "it only restates the answer"
    return ""


def giveaway(text: str, question: str = "") -> str:
    """Returns the first words by which a text gives away that it was helped, or ""."""
    lowered = text.lower().translate(MARKUP)
    line = " ".join(lowered.split())  # a phrase may go on in the next line
    asked = {name.rstrip("s") for name in NAMED.findall(question.lower())}
    for rule, said in ((HEADING, lowered), (LEAK, line)):
        for found in rule.finditer(said):
            phrase = found.group().strip()
            if not any(name.rstrip("s") in asked for name in NAMED.findall(phrase)):
                return phrase[:LONGEST_PHRASE]
    return ""


# ---- words ---------------------------------------------------------------------------------------
# Pieces of the rules, in small letters. A space stands for the one space between two words. Gaps
# are bounded, and no piece begins with one: that keeps the search linear.


def one_of(words: str, *phrases: str) -> str:
    return f"(?:{'|'.join((*words.split(), *phrases))})"


THE = one_of("the this that these those your my our an? any some")
MINE = one_of("the this that my your our an")
CRITIC = one_of("feedback critiques? critics? reviewers? grader evaluators?")
REMARK = one_of(
    "criticisms? review hints? comments? remarks? corrections? suggestions? guidance", CRITIC
)
PERSON = one_of("critic reviewer grader teacher tutor instructor professor")
PLACE = one_of("problem question exercise text statement table passage figure diagram graph")
IN_PROBLEM = rf"(?:\w+ )?(?:in|by|of|from|with) (?:the|this) (?:\w+ )?{PLACE}"
SAYS = one_of(r"""says? said states? stated notes? noted points? pointed suggest(?:s|ed)?
    mention(?:s|ed)? indicate[sd]? highlight(?:s|ed)? identif(?:y|ies|ied) flag(?:s|ged)?
    claim(?:s|ed)? tells? told explain(?:s|ed)? shows? showed asks? asked wants? wanted advise[sd]?
    recommend(?:s|ed)? warn(?:s|ed)? caught finds? found reveal(?:s|ed)? confirm(?:s|ed)?
    complain(?:s|ed)? describe[sd]? refers? remind(?:s|ed)? helps? helped agree[sd]? correctly
    rightly right correct""")
PER = one_of(
    r"""per following follow given considering address\w* incorporat\w+ using use apply applying
    heed heeding take taking in by from with unlike after received""",
    "according to", "based on", "in (?:the )?light of", "in response to", "in line with",
    "thanks to", "(?:act|acting) on", "responding to", "going by",
)  # fmt: skip
WRONG = one_of(
    """wrong incorrect(?:ly)? mistakes? mistaken(?:ly)? errors? flaw(?:s|ed)? failed forgot(?:ten)?
    missed misread ignored overlooked invalid rejected""",
    "not (?:correct|right)", "off by", "mixed up", "went (?:wrong|astray)",
)  # fmt: skip
WORKS = one_of(
    r"""comput\w+ calculat\w+ add(?:s|ed) subtract(?:s|ed) multipli\w+ divid\w+ us(?:es|ed)
    assum\w+ starts? started beg[aiu]ns? stop(?:s|ped) appl\w+ conclud\w+ reach(?:es|ed) end(?:s|ed)
    treat(?:s|ed)"""
)
BEFORE = "previous|prior|earlier|original|preceding"
EARLIER = rf"(?:{BEFORE}|past|old|failed|flawed|first|initial|last)"
TEXT = one_of("answer solution working work reasoning calculation response draft attempt try")
HELD = one_of("correct right actual true real final known stated given target expected")
KNOWN = one_of(
    "given provided supplied known(?!.as) revealed told marked rejected",
    "(?:supposed|said|expected|stated) to (?:be|equal)",
)
VALUE = (
    r"(?:is|was|should be|must be|has to be|equals|to be) \W{0,3}(?:\d|[b-e]\b|option|frac|sqrt)"
)
NO_CHOICE = r"\b(?! (?:choice|option|set|sheet)s?\b)"
NO_LIQUID = (
    r"(?! (?:of|contain|with|had|in (?:the|a|bottle)|is \d|was (?:heated|mixed|diluted)|to the "
    r"equation|has (?!an? (?:error|mistake|flaw|sign))))"
)
PARTS = "|".join(sorted({part.strip("<>").lower() for one in ROLES.values() for part in one.shows}))

# ---- rules ---------------------------------------------------------------------------------------

CRITICS = (
    rf"\b(?:the|this|your|my|our|{PERSON}'s) (?:given |above |provided |detailed )?{CRITIC}\b"
    r"(?! (?:loop|control|system|signal|mechanism|resistor|circuit|path|gain|group|forms?|scores?|"
    r"surveys?|from|of|(?:on|about) (?:the|a|his|her)|"
    r"(?:is|was|were) (?:\w+ly )?(?:positive|negative|mixed)|"
    r"rate|rates|rated|gave|gives|awarded|reviews?|reviewed|reads?|watch\w*|earns?|works)\b)"
    rf"(?!'(?!s)| {IN_PROBLEM})",
    r"\bfeedback (?:says|saying|that|on (?:my|step|line))\b",
    rf"\b{PER} (?:all )?{THE} (?:\w+ )?{REMARK}\b(?! (?:loop|control|section)\b)(?! {IN_PROBLEM})",
    rf"\b{THE} (?:\w+ )?{REMARK}\b(?! {IN_PROBLEM})(?: \w+){{0,4}}? {SAYS}\b",
    rf"\b{THE} {REMARK} (?:provided|given|received|above|i (?:was|received|got|have|had))\b"
    rf"(?! {IN_PROBLEM})",
    rf"(?<!gives )(?<!has )\b(?:(?:the|your) hints?|this hint)\b(?! {IN_PROBLEM}| of\b)",
    r"\b(?:feedback|critique|hint)s? (?:is|was|were|has been|had been) (?:given|provided)\b(?! by)",
    rf"\bi (?:was given|received|got|have|had|have received) (?:{THE} )?(?:\w+ )?{REMARK}",
    rf"\b{PERSON}'s (?:hint|corrections?|comments?)\b",
    r"\bas (?:(?:was|has been|had been) )?(?:pointed out|suggested|hinted|advised|recommended)"
    r"(?! (?:above|earlier|before)\b)(?! (?:in|by) the (?!feedback|critique|review))",
    rf"\bas provided\b(?! {IN_PROBLEM})|\bas instructed by|\bas i was (?:told|shown|advised)",
    r"\bit (?:was|has been) (?:pointed out|remarked|flagged|brought to my)",
    r"\b(?:mistake|error|issue|flaw|slip)s? "
    r"(?:(?:that|which|was|were|is|are|has|have|been) ){0,3}"
    r"(?:pointed out|flagged|identified|highlighted|raised|noted|mentioned)",
    r"\baccording to the notes|\bthe notes (?:say|state|mention)|\b(?:given|provided) notes",
)
SPOKEN_TO = (
    r"(?<!if )\byou (?:have |had |just |correctly |rightly )?(?:pointed|mentioned|noted|suggested|"
    r"explained|flagged|identified|hinted|indicated|(?:told|gave|showed) (?:me|us))\b|\byou said\b",
    r"\bas you (?:say|state|note|point|suggest|write|wrote|explain)|\byour point\b",
    r"\b(?:answer|solution|attempt|hint|feedback|working) (?:that )?you (?:gave|provided|showed)\b",
    r"\byou(?:'re| are| were) (?:absolutely |quite |completely )?(?:right|correct)\b(?! to)",
    r"\byour (?:\w+ )?(?:feedback|critique|hints?|comments?|suggestions?|corrections?|notes?|"
    r"review|remarks?|observation|guidance|advice|explanation|attempt)\b",
    r"\byour (?:answer|solution|working) (?:of|was|is (?:right|wrong|correct|incorrect))\b",
    r"\bthank(?:s| you) for|\bthanks to your|\bi apologi[sz]e|\bapologies\b|\bgood catch\b|"
    r"\bsorry (?:for|about)|\bi appreciate (?:the|your)",
)
ANSWERS = (
    r"\b(?:expected|reference|gold(?:en)?|ground.truth|provided|supplied|given|intended|official|"
    rf"target|known|stated|model) (?:final |correct |numerical )?answers?{NO_CHOICE}",
    r"\b(?:reference|gold(?:en)?|ground.truth|official|model|provided|supplied|given|expected) "
    rf"solutions?{NO_CHOICE}{NO_LIQUID}",
    r"\b(?:expected|provided|supplied) (?:results?|outputs?|labels?|conclusion|expression|string|"
    r"word|letters?)\b(?! of)(?! in)|\bthe known result (?:is|of)",
    r"\bthe expected \W{0,2}\d[\d.,/]*(?! ?[a-z%])",
    r"\bground.truth\b|\banswer key\b|\bgold label\b|\bmark(?:ing)? scheme\b|"
    r"\btextbook(?:'s)? (?:answer|solution)|\bsolutions? manual\b",
    rf"\banswers? (?:(?:that|which|is|was|has|been|already) ){{0,4}}{KNOWN}\b"
    r"(?! (?:by|in(?! the (?:prompt|feedback))|the|between|choice|option))",
    r"\banswer (?:that|which) (?:is|was) expected|\banswer (?:that )?(?:they|you) (?:expect|want)",
    r"\bsolution (?:that |which )?(?:was|were|has been) (?:given|provided|supplied)\b(?! in| by)",
    r"\b(?:answer|solution) (?:that )?(?:i|we) (?:was|were|have been) (?:given|told|shown)",
    rf"\bsolutions? (?:given|provided|supplied)\b(?! by){NO_LIQUID}",
    r"\banswer,? as (?:given|provided)",
    r"\btold (?:that )?(?:my|the) (?:answer|solution|attempt|working) (?:is|was) "
    r"(?:wrong|incorrect)",
    r"\b(?:answer|result) (?:that )?(?:i am|i'm|we are|we're) supposed to",
    r"\bthe (?:answer|solution) (?:says|states|mentions|notes|claims|tells me)\b",
    r"\b(?:given|knowing|know|told|shown|says?|already have)(?: that)? the "
    r"(?:correct |right |final |actual )?answer\b"
    r"(?! (?:to|must|choice|option|in|is (?:an?|between|in|less|more|not)))",
    r"\bcorrect answer being\b|\bthe reference (?:says|states|gives|shows|uses)",
    r"\banswer should (?:be|have been) [^,]{1,20},? (?:but|yet|while|however),? (?:i|we|my|the)\b",
    r"\b(?:match(?:es|ing|ed)?|agree[sd]? with|consistent with|in line with|equal to|against|"
    r"differ(?:s|ent)? from|compar(?:e|ed|ing) (?:\w+ )?(?:with|to)|confirm(?:s|ed)?|contradicts?|"
    rf"aligns? with|corresponds? to) (?:the|this|that) (?:{HELD} (?:answer|solution|result)"
    rf"{NO_CHOICE}|reference(?! \w))|\b(?:according to|as in) the reference(?! \w)",
    r"\b(?:see(?:ing|n)?|saw|look(?:ing|ed)? at|read(?:ing)?|work(?:ing)? back(?:ward)?s? from) "
    rf"the {HELD} (?:answer|solution){NO_CHOICE}",
    r"\b(?:since|because|as|know(?:ing|n)?|given|told|shown|informed)(?: that)? the "
    rf"(?:{HELD} )?answer {VALUE}",
    rf"\b(?:told|shown|informed)(?: that)? the (?:{HELD} )?result (?:is|was|should|must)",
    rf"\b(?:since|because|as) \S{{1,20}} is the {HELD} answer",
    r"\b(?:was|were|been|being) (?:given|shown|handed|provided with|supplied with) (?:the|an?|some)"
    rf" (?:\w+ )?(?:answer|attempt|hint|feedback|critique|solution{NO_LIQUID})\b",
    r"\b(?:i|we)(?:'m| am| was| were|'ve been| have been) (?:asked|told|instructed|supposed) "
    r"(?:not )?to (?:rewrite|revise|hide|pretend|mention|reveal)",
    r"\bpretend (?:that )?i (?:do|did|am)|\bas if i (?:found|had|came|did|do|thought)",
    r"\b(?:without|not|never|avoid) (?:to )?(?:reveal|mention|hint|acknowledg|disclos|say|admit)"
    r"\w* (?:\w+ ){0,6}?(?:answer|feedback|attempt|hint|critique)\b",
)
TEXTS_BEFORE = (
    r"\bthe attempt\b(?! (?:to|at|fails|failed|succeed|cost|rate|gives|works|is made|is success))",
    r"\bthe attempt failed (?:to|because)|\bthe attempted (?:answer|solution)",
    r"\battempt (?:above|shown|given|provided)\b|\b(?:the )?above (?:attempt|working)\b",
    rf"\b{MINE} (?:{BEFORE}|failed|flawed|given|provided) (?:attempts?|try|draft|response|solver)\b"
    r"(?! (?:to|at)\b)",
    rf"\b{MINE} (?:previous|prior|earlier) solutions?{NO_CHOICE}{NO_LIQUID}",
    rf"\bin (?:the|my) {EARLIER} (?:attempt|answer|working|reasoning|response|draft),? "
    rf"(?:i|it|we)\b|\bin (?:the|my) (?:{BEFORE}) (?:attempt|working|response|draft),? the\b",
    rf"\b{MINE} (?:{EARLIER} attempt|(?:{BEFORE}) (?:answer|solution|working|reasoning|response|"
    rf"draft))(?: \w+ly)? (?:{SAYS}|{WORKS})\b",
    rf"\b{MINE} {EARLIER} {TEXT},?(?: [\w,]+){{0,6}}? {WRONG}\b",
    rf"\b{MINE} (?:{BEFORE}) (?:reasoning|working)\b",
    r"\bpreviously (?:i )?(?:answered|got it wrong)",
    r"\b(?:student|user|assistant|model|solver)'s (?:\w+ )?(?:attempt|solution|working|reasoning|"
    rf"response|answer(?: \w+){{1,4}}? {WRONG}\b)",
    r"\b(?:revised|rewritten|corrected|amended) (?:solution|version|attempt|answer|response|"
    r"working|draft|reasoning)|\b(?:improved|updated|fixed) (?:solution|attempt|answer|response)",
    rf"\brewrit(?:es?|ing) (?:of )?{MINE} (?:\w+ )?{TEXT}\b",
    r"\b(?:revis(?:e|ing)|correct(?:ing)?|fix(?:ing)?|redo(?:ing)?) "
    rf"{MINE} (?:\w+ )?(?:attempt|draft|response)\b",
)
TAGS = (
    rf"< ?/? ?(?:{PARTS}) ?>",
    r"\b(?:expected|feedback|attempt|hint|critique) (?:tags?|block|section|field)\b",
)
RULES = (*CRITICS, *SPOKEN_TO, *ANSWERS, *TEXTS_BEFORE, *TAGS)
LEAK = re.compile("|".join(f"(?:{rule})" for rule in RULES))
# A label at the beginning of a line.
HEADING = re.compile(
    r"^[^\w\n]{0,8}(?:feedback|critique|revised|rewrite|rewritten|corrected|retry|expected)"
    r"(?: (?:answer|solution|version|attempt|working))?[^\w\n]{0,4}:",
    re.MULTILINE,
)
# Words that leak nothing where the problem itself has them.
NAMED = re.compile(rf"\b(?:{REMARK}|attempt|try|notes)")
MARKUP = str.maketrans({"’": "'", "_": " ", **dict.fromkeys('*`"“”')})
