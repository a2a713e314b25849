"""Names that identify a person, and surrogate names. The two lists have no name in common.

Frequent given and family names of English-speaking countries, compiled for this file. Names that are also common words
(Will, Mark, Grace, Young) are omitted and detected by their context instead.
"""


def _words(text: str) -> list[str]:
    return text.split()


GIVEN = frozenset(
    _words(
        """
    aaron abigail adam adrian aisha alan albert alejandro alex alexander alexandra alice alicia allison amanda amber
    amy ana andrea andrew angela anita ann anna anne anthony antonio arthur ashley barbara beatrice benjamin bernard
    beth betty beverly bianca bradley brandon brenda brian bridget bruce bryan caitlin cameron camila carl carla
    carlos carol caroline catherine cecilia charles charlotte cheryl chloe christian christina christine christopher
    cindy claire clara connor craig crystal cynthia daniel danielle david deborah debra denise dennis derek diana
    diane diego donald donna dorothy douglas dylan edward eileen elaine eleanor elena elizabeth ella ellen emily
    emma eric erin ethan eugene eva evan evelyn fatima felicia fernando fiona frances francis frank gabriel gabriela
    gary george gerald gloria gregory hannah harold harry heather helen henry howard hugh ian irene isaac isabel
    isabella ivan jack jacob jacqueline james jamie jane janet janice jason jean jeffrey jennifer jeremy jerry jesse
    jessica joan joanna jocelyn joel john jonathan jordan jorge jose joseph joshua joyce juan judith judy julia
    julian julie justin karen karl kate katherine kathleen kathryn kayla keith kelly kenneth kevin kimberly kyle
    lakshmi larry laura lauren lawrence leah leonard leslie liam linda lisa logan lorraine louis louise lucas lucia
    luis luke lydia madison marcus margaret maria marie marilyn marjorie martha martin mary mateo matthew maureen
    megan melanie melissa mia michael michelle miguel mildred mohammed monica nancy naomi natalie nathan nicholas
    nicole nina noah norma olivia oscar pamela patricia patrick paul paula pauline pedro peter philip phillip
    phyllis priya rachel ralph raymond rebecca ricardo richard robert roberto roger ronald rosa roxanne roy russell
    ryan samantha samuel sandra sara sarah scott sean sharon sheila shirley simon sofia sophia stanley stella
    stephanie stephen steven susan suzanne sylvia tamara tanya teresa terry theodore theresa thomas timothy tina
    todd tracy tyler valerie vanessa vernon veronica victor victoria vincent virginia vivian walter wayne wendy
    william yolanda yusuf yvonne zachary zoe
    """
    )
)

FAMILY = frozenset(
    _words(
        """
    adams alvarez anderson bailey bennett boyd bradley brooks bryant campbell carlson castillo chavez chen choi
    clark cohen coleman collins cooper cox cruz cunningham davis diaz dixon edwards elliott evans ferguson fernandez
    fitzgerald flores fowler freeman garcia gibson gomez gonzales gonzalez graham greene griffin gupta gutierrez
    hamilton hansen harper harris harrison hawkins henderson hernandez hoffman holloway howell hughes jackson
    jenkins jensen jimenez johnson johnston jones kelley kennedy khan kim kowalski kumar larson lawson lee lewis
    lopez marshall martinez mcdonald medina mendoza meyer mitchell moore morales moreno morgan morris murphy murray
    myers nelson nguyen nichols novak o'brien o'connor olson ortiz owens palmer parker patel patterson perez perkins
    peters peterson phillips pham powell ramirez ramos reynolds richardson riley rivera roberts robertson robinson
    rodriguez rogers romero ross ruiz russell ryan sanchez sanders schmidt schneider schultz scott sharma shaw
    simmons simpson singh smith snyder spencer stephens stevens stewart sullivan taylor thomas thompson torres tran
    tucker turner vargas vasquez wagner walker wallace warren watkins watson weaver webb weber wheeler whitaker
    williams williamson wilson wu xu yang zhang zimmerman
    """
    )
)

SURROGATE_GIVEN = tuple(
    _words(
        """
    Alda Ambrin Andra Arvel Asta Aurin Bastia Belora Bereth Brisa Calder Carys Celwin Corin Dagny Darien Delphine
    Doran Edda Elwin Emrys Enora Fabrin Farren Fenna Galen Gerda Halina Harlan Idris Ilsa Ines Ingmar Isolde Jannik
    Jessamy Joram Kasimir Keziah Leora Linnea Lorin Lucan Maelle Maren Merrit Mirela Nadine Nerys Nolan Odette Orla
    Osric Perrin Petra Quillan Ragna Rainer Ravenna Rhoswen Roland Rufina Sabine Selwyn Signe Solveig Talwyn Tamsin
    Thora Tobin Ulrik Undine Vance Verena Wendel Wilmot Xanthe Ysolde Yorick Zelda
    """
    )
)

SURROGATE_FAMILY = tuple(
    _words(
        """
    Abendroth Alderwick Ashgrove Bellweather Birkenau Blackmere Bramwell Brockhurst Calloway Carrington Copperfield
    Cresswell Dunmore Dunwoody Eastlake Elderbrook Fairweather Fallowfield Farnsworth Featherstone Foxglove Garrick
    Glenfield Greystone Hartwell Hathersage Hazelwood Hollingbrook Ingleby Kestrel Kingsmill Lachlan Langmere
    Larkspur Lindqvist Loxley Marchbanks Meadowcroft Merriweather Millbrook Moorland Netherby Nightingale Northcote
    Oakhurst Oakenfold Pemberton Penhallow Quillfeather Ravenscroft Redfern Ridgeway Rosewarne Rothbury Sallow
    Sedgewick Silverton Stonebridge Summerfield Tanglewood Thistlewood Thornbury Underhill Vandermeer Wainwright
    Westerly Whitlock Wickham Windermere Winterbourne Wolfenden Wycombe Yarrow Yellowley
    """
    )
)

NOT_NAMES = frozenset(
    _words(
        """
    the this that these those he she they it we his her their our patient doctor nurse mr mrs ms dr prof date record
    admission discharge history assessment plan note follow please thank dear hello hospital clinic ward emergency
    department today yesterday tomorrow monday tuesday wednesday thursday friday saturday sunday january february
    march april may june july august september october november december denies reports presented admitted
    discharged seen has was is and on in at with no not if for from phone email address street road avenue lane
    north south east west united states kingdom medical university center centre health care system service type
    stage grade left right heart blood chest pain
    """
    )
)
"""Words that often occur next to names, sometimes capitalized, and are not names."""
